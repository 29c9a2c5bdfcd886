"""What is said of a judged model: tables, drawings, the page."""
