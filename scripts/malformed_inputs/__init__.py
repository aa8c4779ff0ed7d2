"""What the campaign of malformed and hostile inputs tries, one file an area."""
