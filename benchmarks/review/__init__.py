"""The review service under load: a real HTTP load tool, real processes, a real Postgres."""
