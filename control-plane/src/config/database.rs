//! Which database: a file in the data folder, or PostgreSQL.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Config, Fault};
use crate::secret_file;
use crate::store::Server;

/// The name of the systemd credential that holds the database's password.
pub const PASSWORD_CREDENTIAL: &str = "portico-database-password";

impl Config {
    /// The PostgreSQL server with its password; `None`: the file in the data folder.
    ///
    /// # Errors
    /// The password's file cannot be read, or others may read it.
    pub fn server(&self) -> anyhow::Result<Option<Server>> {
        let Some(url) = &self.database else { return Ok(None) };
        let password = credential().or_else(|| self.database_password_file.clone());
        let password = password.map(|file| secret_file::read_text(&file)).transpose();
        let password = password.context("the database's password")?;
        // White space may be a part of it.
        let password = password.as_ref().map(|text| text.trim_end_matches(['\r', '\n']));
        Server::parse(url, password).map(Some).map_err(anyhow::Error::msg).context("database")
    }

    pub(super) fn check_database(&self) -> Result<(), Fault> {
        let Some(url) = &self.database else {
            return match self.database_password_file {
                Some(_) => Err(Fault::new(
                    "database_password_file",
                    "database_password_file is for database = \"postgresql://..\", which is not set",
                )),
                None => Ok(()),
            };
        };
        Server::parse(url, None).map_err(|why| Fault::new("database", format!("database {why}")))?;
        Ok(())
    }
}

fn credential() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(Path::new(&folder).join(PASSWORD_CREDENTIAL)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn config(folder: &Path, more: &str) -> Result<Config, String> {
        let text = format!(
            "data = {:?}\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\n{more}",
            folder.join("data")
        );
        Config::parse(&text, Path::new("cp.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_password_comes_from_a_file_that_only_we_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "swordfish\n").unwrap();
        let more = format!(
            "database = \"postgresql://portico@localhost/portico\"\ndatabase_password_file = {file:?}"
        );
        let config = config(folder.path(), &more).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = format!("{:#}", config.server().unwrap_err());
        assert!(refused.contains("the database's password") && refused.contains("chmod 600"), "{refused}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let server = config.server().unwrap().unwrap();
        assert!(!format!("{server:?} {config:?}").contains("swordfish"));
    }

    #[test]
    fn what_cannot_be_a_database_is_refused_where_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        for (more, expected) in [
            ("database = \"mysql://db/portico\"", "database must be a URL"),
            ("database = \"postgresql://u:p@db/portico\"", "database must not hold the password"),
            ("database_password_file = \"/etc/pw\"", "which is not set"),
        ] {
            let refused = config(folder.path(), more).unwrap_err();
            assert!(refused.starts_with("cp.toml:4:") && refused.contains(expected), "{more}: {refused}");
        }
    }
}
