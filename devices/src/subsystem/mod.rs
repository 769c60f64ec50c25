//! NVM subsystems: they own namespaces; controllers come and go.
