//! Static tokens in kube-apiserver's `--token-auth-file` format: `token,user,uid,"group1,group2"`, a line a token.

use std::{collections::HashMap, path::Path};

use sha2::{Digest, Sha256};

use crate::identity::User;

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot read the token file {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "line {line} of the token file: want `token,user,uid` and optionally a quoted list of groups"
    )]
    Line { line: usize },
}

/// Tokens by their SHA-256, so that looking one up takes the same time however much of it is right.
#[derive(Default)]
pub struct StaticTokens {
    users: HashMap<[u8; 32], User>,
}

impl StaticTokens {
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenFileError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&text)
    }

    pub fn parse(text: &str) -> Result<Self, TokenFileError> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let fields = split_csv(line);
            let (token, name, uid) = match &fields[..] {
                [token, name, uid, ..] if !token.is_empty() && !name.is_empty() => {
                    (token, name, uid)
                }
                _ => return Err(TokenFileError::Line { line: index + 1 }),
            };
            let groups = fields.get(3).map(String::as_str).unwrap_or_default();
            let user = User {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups
                    .split(',')
                    .filter(|g| !g.is_empty())
                    .map(str::to_owned)
                    .collect(),
                ..User::default()
            };
            users.insert(Sha256::digest(token).into(), user);
        }
        Ok(Self { users })
    }

    pub fn user(&self, token: &str) -> Option<User> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.users.get(&digest).cloned()
    }
}

/// One line of RFC 4180 §2: fields by commas, a quoted field may hold commas and doubled quotes.
fn split_csv(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.trim_end_matches('\r').chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields.last_mut().expect("starts with one field").push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields
                .last_mut()
                .expect("starts with one field")
                .push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let tokens =
            StaticTokens::parse("t1,alice,1\n\nt2,bob,2,\"dev,ops\"\nt3,carol,3,one\n").unwrap();
        assert_eq!(tokens.user("t1").unwrap().groups, Vec::<String>::new());
        assert_eq!(tokens.user("t2").unwrap().groups, ["dev", "ops"]);
        assert_eq!(tokens.user("t3").unwrap().groups, ["one"]);
        assert!(tokens.user("t4").is_none());
    }

    #[test]
    fn a_short_line_is_named() {
        let error = StaticTokens::parse("t1,alice,1\njust-a-token\n")
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("line 2"), "{error}");
    }
}
