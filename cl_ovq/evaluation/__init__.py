"""The results matrix, its metrics, dictionary metrics and figures."""
