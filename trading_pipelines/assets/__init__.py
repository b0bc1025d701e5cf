"""What Dagster materialises, one module a subject; the arithmetic is in the plain packages."""
