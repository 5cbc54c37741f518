"""What a store and its catalogue cost as a site grows: synthetic sources, the real catalogue, the real passes."""
