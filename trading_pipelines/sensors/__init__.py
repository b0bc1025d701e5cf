"""What watches for something to tell. What is told, and whether it was, belongs in `alerts/`."""
