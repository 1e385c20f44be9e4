//! Users and groups as the files of an image name them, and which groups a container's process gets of them.
//!
//! Docker adds the groups that `/etc/group` gives a user where no group is named beside the user, and only there.
//! Kubernetes adds them always (`supplementalGroupsPolicy: Merge`, KEP-3619) or never (`Strict`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::runtime::{Runtime, RuntimeError, Security};

/// Images whose files are remembered.
const MAX_KNOWN: usize = 512;

/// `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// What was read of images, by their ids.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<String, Arc<Accounts>>>);

impl Known {
    pub fn get(&self, image: &str) -> Option<Arc<Accounts>> {
        self.0.lock().get(image).cloned()
    }

    /// Reads them out of a container of the image.
    ///
    /// # Errors
    /// Of the runtime.
    pub async fn read(
        &self,
        runtime: &dyn Runtime,
        container: &str,
        image: &str,
    ) -> Result<Arc<Accounts>, RuntimeError> {
        let text = async |path| {
            let bytes = runtime.read_file(container, path).await?;
            let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
            Ok::<_, RuntimeError>(text)
        };
        let accounts = Arc::new(Accounts {
            passwd: text("/etc/passwd").await?,
            group: text("/etc/group").await?,
        });
        let mut known = self.0.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        if !image.is_empty() {
            known.insert(image.to_owned(), accounts.clone());
        }
        Ok(accounts)
    }
}

/// Whom a container runs as, before the image's files were asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Of the image, for where the pod names no user.
    pub image_user: &'a str,
    pub strict: bool,
}

impl Question<'_> {
    fn user<'a>(&'a self, security: &'a Security) -> &'a str {
        match security.user.as_str() {
            "" => self.image_user,
            user => user,
        }
    }

    /// Whether Docker left to itself would give other groups.
    pub fn needs_accounts(&self, security: &Security) -> bool {
        let names_group = self.user(security).contains(':');
        names_group != self.strict
    }

    /// The same in words that Docker takes as Kubernetes means them.
    pub fn answer(&self, security: &Security, accounts: &Accounts) -> Security {
        let mut out = security.clone();
        if !self.needs_accounts(security) {
            return out;
        }
        let (user, _) = self
            .user(security)
            .split_once(':')
            .unwrap_or((self.user(security), ""));
        let user = if user.is_empty() { "0" } else { user };
        let found = accounts.user(user);
        if self.strict {
            // With a group beside it nothing is added.
            match found {
                Some(account) => out.user = format!("{}:{}", account.uid, account.gid),
                None if user.parse::<u32>().is_ok() => out.user = format!("{user}:0"),
                // Docker says that there is no such user.
                None => {}
            }
        } else if let Some(account) = found {
            for group in accounts.groups_of(account.name) {
                if !out.supplemental_groups.contains(&group) {
                    out.supplemental_groups.push(group);
                }
            }
        }
        out
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl Accounts {
    /// By name or by number: passwd(5).
    fn user(&self, who: &str) -> Option<Account<'_>> {
        let number = who.parse::<u32>().ok();
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            (name == who || number == Some(uid)).then_some(Account { name, uid, gid })
        })
    }

    /// Those that name the user: group(5).
    fn groups_of(&self, user: &str) -> Vec<i64> {
        let fields = self.group.lines().map(|line| line.split(':'));
        fields
            .filter_map(|mut fields| {
                let id = fields.nth(2)?.parse().ok()?;
                let mut members = fields.next()?.split(',');
                members.any(|member| member == user).then_some(id)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(user: &str, image_user: &str, strict: bool, expected: (&str, &[i64])) {
        let accounts = Accounts {
            passwd: "root:x:0:0::/:/bin/sh\nfred:x:1000:1500::/:/bin/sh\n".into(),
            group: "wheel:x:10:root,fred\nempty:x:11:\nown:x:50000:fred\nbroken\n".into(),
        };
        let security = Security {
            user: user.into(),
            supplemental_groups: vec![60_000],
            ..Default::default()
        };
        let answer = Question { image_user, strict }.answer(&security, &accounts);
        let found = (answer.user.as_str(), answer.supplemental_groups.as_slice());
        assert_eq!(found, expected, "{user:?} of {image_user:?}, {strict}");
    }

    #[test]
    fn groups_of_the_image_are_merged_or_left_out() {
        // Docker adds them itself.
        check("1000", "", false, ("1000", &[60_000]));
        check("", "fred", false, ("", &[60_000]));
        check("1000:7", "", false, ("1000:7", &[60_000, 10, 50_000]));
        check("fred:7", "", false, ("fred:7", &[60_000, 10, 50_000]));
        check("", "fred:7", false, ("", &[60_000, 10, 50_000]));
        check("2000:7", "", false, ("2000:7", &[60_000]));

        check("1000:7", "", true, ("1000:7", &[60_000]));
        check("1000", "", true, ("1000:1500", &[60_000]));
        check("", "fred", true, ("1000:1500", &[60_000]));
        check("", "", true, ("0:0", &[60_000]));
        check("2000", "", true, ("2000:0", &[60_000]));
        check("nobody", "", true, ("nobody", &[60_000]));
    }
}
