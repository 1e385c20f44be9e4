use proptest::prelude::*;

use super::*;

/// Docker's side: it appends lines and rotates as `json-file` does.
struct Docker {
    dir: tempfile::TempDir,
    said: Vec<String>,
}

impl Docker {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("id-json.log"), "").unwrap();
        let said = Vec::new();
        Self { dir, said }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("id-json.log{suffix}"))
    }

    fn say(&mut self, text: &str) {
        let number = self.said.len();
        let time = format!("2026-01-01T00:00:00.{number:09}Z");
        let line = serde_json::json!({"log": text, "stream": "stdout", "time": time});
        let mut file = OpenOptions::new().append(true).open(self.path("")).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
        let (text, tag) = match text.strip_suffix('\n') {
            Some(text) => (text, "F"),
            None => (text, "P"),
        };
        self.said.push(format!("{time} stdout {tag} {text}\n"));
    }

    fn rotate(&self) {
        for n in (1..4).rev() {
            let _ = fs::rename(
                self.path(&format!(".{n}")),
                self.path(&format!(".{}", n + 1)),
            );
        }
        fs::rename(self.path(""), self.path(".1")).unwrap();
        fs::write(self.path(""), "").unwrap();
    }

    fn copy(&self, max_size: u64) -> Copy {
        let paths = Paths {
            source: self.path(""),
            log: self.dir.path().join("log/0.log"),
            link: self.dir.path().join("links/c.log"),
            position: self.dir.path().join("state/0"),
        };
        let max_files = 1000;
        Copy::new(
            paths,
            Rotation {
                max_size,
                max_files,
            },
        )
    }

    fn copied(&self) -> String {
        let chain = Chain {
            path: self.dir.path().join("log/0.log"),
            suffix: Suffix::Time,
        };
        let files = chain.files().unwrap();
        files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap())
            .collect()
    }
}

fn drain(copy: &mut Copy) {
    while copy.pump().unwrap() {}
}

#[test]
fn lines_take_the_format_of_the_cri() {
    let mut out = Vec::new();
    convert(
        b"{\"log\":\"a \\u003c b\\n\",\"stream\":\"stdout\",\"time\":\"2016-10-06T00:17:09.6697Z\"}\n\
          no line\n\
          {\"log\":\"part\",\"stream\":\"stderr\",\"time\":\"2016-10-06T00:17:10Z\"}\n",
        &mut out,
    );
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "2016-10-06T00:17:09.669700000Z stdout F a < b\n\
         2016-10-06T00:17:10.000000000Z stderr P part\n"
    );
}

#[test]
fn what_was_copied_is_kept_once() {
    let mut docker = Docker::new();
    let mut copy = docker.copy(u64::MAX);
    docker.say("one\n");
    drain(&mut copy);
    docker.say("two\n");
    docker.rotate();
    docker.say("three\n");
    drain(&mut copy);
    assert_eq!(docker.copied(), docker.said.concat());
    assert_eq!(fs::metadata(docker.path(".1")).unwrap().len(), 0);
    assert_eq!(
        fs::read_to_string(docker.dir.path().join("links/c.log")).unwrap(),
        docker.copied()
    );
}

#[test]
fn old_files_go_and_the_position_follows() {
    let mut docker = Docker::new();
    let mut copy = docker.copy(40);
    copy.rotation.max_files = 3;
    for n in 0..10 {
        docker.say(&format!("line {n}\n"));
        drain(&mut copy);
    }
    // Two that are full, and an empty one to write to.
    assert_eq!(docker.copied(), docker.said[8..].concat());
}

/// What may happen between two looks of the agent.
#[derive(Debug, Clone)]
enum Event {
    Say(String),
    Rotate,
    Pump,
    /// The agent dies; `torn` bytes had been written beyond what it could note.
    Crash {
        torn: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => "[a-z\"\\\\é]{0,30}\n?".prop_map(Event::Say),
        1 => Just(Event::Rotate),
        3 => Just(Event::Pump),
        1 => (0usize..200).prop_map(|torn| Event::Crash { torn }),
    ]
}

proptest! {
    /// Nothing is lost and nothing comes twice, wherever the agent dies.
    #[test]
    fn every_line_is_copied_once(events in proptest::collection::vec(event(), 1..60), max_size in 50u64..400) {
        let mut docker = Docker::new();
        let mut copy = docker.copy(max_size);
        let mut unread_rotations = 0;
        for event in events {
            match event {
                Event::Say(text) => docker.say(&text),
                // Docker keeps five files: more than that while nobody reads is lost by its own account.
                Event::Rotate if unread_rotations < 3 => {
                    docker.rotate();
                    unread_rotations += 1;
                }
                Event::Rotate => {}
                Event::Pump => {
                    drain(&mut copy);
                    unread_rotations = 0;
                }
                Event::Crash { torn } => {
                    let kept = fs::read(docker.dir.path().join("state/0"));
                    let size = |c: &Copy| c.open.as_ref().map(|o| (o.log_inode, o.skip));
                    let before = size(&copy);
                    let _ = copy.pump();
                    let after = size(&copy);
                    // As if the note of that step had not been written, and its lines only in part.
                    if let (Ok(kept), Some((inode, 0)), Some((same, 0))) = (kept, before, after)
                        && inode == same
                    {
                        let note = Position::parse(std::str::from_utf8(&kept).unwrap()).unwrap();
                        let now = fs::read_to_string(docker.dir.path().join("state/0")).unwrap();
                        let now = Position::parse(&now).unwrap();
                        if note.source_inode == now.source_inode {
                            fs::write(docker.dir.path().join("state/0"), kept).unwrap();
                            let log = OpenOptions::new().write(true)
                                .open(docker.dir.path().join("log/0.log")).unwrap();
                            let length = (note.log_size + torn as u64).min(now.log_size);
                            log.set_len(length).unwrap();
                        }
                    }
                    copy = docker.copy(max_size);
                }
            }
        }
        drain(&mut copy);
        prop_assert_eq!(docker.copied(), docker.said.concat());
    }
}
