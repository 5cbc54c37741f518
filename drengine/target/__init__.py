"""The target: takes in what agents ship, keeps the store in order, serves points, and brings disks back."""
