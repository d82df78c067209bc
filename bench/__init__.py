"""What Headrace costs and how fast it is, measured on one machine with everything included. See README.md."""
