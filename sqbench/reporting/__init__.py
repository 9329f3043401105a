"""Tables from records: one tidy long frame, pure steps on it, then writers. Reads records only, never models or data."""
