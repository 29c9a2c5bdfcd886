"""Pictures that someone names: decoded, tagged, and written of."""
