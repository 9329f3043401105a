"""One self-contained page from a results folder. Data flows in one direction: results, sections, page, file or local server."""
