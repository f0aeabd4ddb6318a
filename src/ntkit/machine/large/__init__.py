"""A million rows: ridge on features, streamed over the data."""
