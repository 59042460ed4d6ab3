//! The users of this machine.

/// What `/etc/passwd` says. Those whom only a name service knows have numbers.
#[derive(Debug)]
pub struct Users {
    passwd: String,
}

impl Users {
    /// Reads it; a file that is not there has nobody.
    #[must_use]
    pub fn read() -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self { passwd }
    }

    /// A user's name, or the number as runc writes it.
    #[must_use]
    pub fn name(&self, uid: u32) -> String {
        let name = self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        });
        name.unwrap_or_else(|| format!("#{uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_or_numbers() {
        let users = Users::read();
        assert_eq!(users.name(0), "root");
        assert_eq!(users.name(4_000_000_000), "#4000000000");
    }
}
