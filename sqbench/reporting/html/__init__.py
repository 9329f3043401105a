"""One self-contained page from a results folder. Data flows one way: results -> sections -> page -> file or loopback server."""
