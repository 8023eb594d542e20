"""Self-contained HTML pages: escaping by construction, one style, charts as inline SVG, tables that sort and search."""
