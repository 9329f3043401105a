"""Tables and pictures from records: one tidy long frame, pure steps on it, then writers. It never reads models or data."""
