"""What tests share: bundles, running services, data."""
