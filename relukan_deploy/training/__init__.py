"""The rooms behind `relukan_deploy.fit`: the examples, the steps, the epochs over all grids, what is kept on disk."""
