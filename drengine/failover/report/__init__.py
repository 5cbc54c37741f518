"""What a run did and achieved, for people who were not there: as JSON and as one page."""
