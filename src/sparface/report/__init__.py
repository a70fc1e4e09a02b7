"""Reports: `compare` shows runs side by side in one HTML file."""
