"""The replica store: segments, catalogue, branches, points, views. docs/format.md gives every byte."""
