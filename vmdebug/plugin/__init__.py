"""What the pytest plugin is made of; `vmdebug.pytest_plugin` imports it when it is used."""
