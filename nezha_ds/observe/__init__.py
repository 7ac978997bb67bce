"""What a run tells the world: events, one table of metrics, a journal, a console line, an exporter, a summary."""
