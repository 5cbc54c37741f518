"""How servers join a site: what is said about each, an inventory of many, and the line that each is given."""
