"""A report on several runs as one HTML page that needs no network; see `page.write_report`."""
