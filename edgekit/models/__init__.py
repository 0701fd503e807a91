"""The zoo: one module for each family of networks."""
