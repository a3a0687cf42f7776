"""Results for people: tables in the terminal, in Markdown, HTML, CSV and LaTeX."""
