"""Recipes: shell scripts that chain the stages, and the tables that they end with."""
