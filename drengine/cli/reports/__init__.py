"""`drengine reports`: what runs did and achieved, as kept for people who were not there."""
