"""PPO: speed, memory and parity against trl 1.12.0, the last TRL release with PPO."""
