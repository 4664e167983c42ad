"""What a run leaves behind: tables, figures, one HTML page, dashboards."""
