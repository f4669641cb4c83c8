"""What others would pick in place of Rushgate, each written as its community writes it, around one Lua script."""
