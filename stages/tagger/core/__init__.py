"""What every package uses: errors, files, small tables, and the tables that stages hand on."""
