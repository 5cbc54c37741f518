"""What a position shows: records read and checked, extent maps, layers of them, and views that read through both."""
