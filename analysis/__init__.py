"""From MLflow to tables, figures, verdicts and a report. Reads MLflow alone and imports no trainer."""
