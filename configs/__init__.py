"""YAML configurations, shipped inside the package."""
