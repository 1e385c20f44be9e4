//! Who owns whom. Pure: objects in, what to do with one of them out.

use std::collections::{BTreeSet, HashMap};

use kube::{api::PropagationPolicy, core::ObjectMeta};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: String,
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) blocks: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) uid: String,
    /// `group/Kind`.
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<Owner>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

impl Node {
    pub(super) fn new(kind: &str, meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|own| own == finalizer);
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: owners(meta),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// Waits for its dependents to be gone.
    fn deletes_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

pub(super) fn owners(meta: &ObjectMeta) -> Vec<Owner> {
    meta.owner_references
        .iter()
        .flatten()
        .map(|owner| Owner {
            uid: owner.uid.clone(),
            group: owner
                .api_version
                .split_once('/')
                .map_or("", |(group, _)| group)
                .to_owned(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            blocks: owner.block_owner_deletion.unwrap_or_default(),
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    Present,
    /// Present, and being deleted in the foreground: it wants its dependents gone.
    Waiting,
    Absent,
    /// Nobody can tell.
    Unknown,
}

#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Keep,
    /// Some owners stay: forget the others.
    DropOwners(BTreeSet<String>),
    Delete(PropagationPolicy),
    /// In the foreground, and its dependents are in a circle with it.
    UnblockAndDelete(Vec<String>),
    DeleteDependents(Vec<String>),
    OrphanDependents(Vec<String>),
    FinishForeground,
}

/// An object, and each of its owners with what the graph knows of it.
pub(super) type View = (Node, Vec<(Owner, Option<OwnerState>)>);

#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// Dependents by the uid of an owner, whether that exists or not.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Takes the newest form of an object. Returns the uids that need a look because of it.
    pub(super) fn put(&mut self, node: Node) -> Vec<String> {
        let uid = node.uid.clone();
        let mut affected = Vec::new();
        let old = self.nodes.remove(&uid);
        if let Some(old) = &old {
            self.unlink(old);
        }
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        let owners_changed = old.as_ref().is_none_or(|old| old.owners != node.owners);
        let suspicious = node.owners.iter().any(|owner| {
            self.nodes
                .get(&owner.uid)
                .is_none_or(|owner| owner.deletes_dependents())
        });
        if (owners_changed && suspicious) || (node.deleting && (node.foreground || node.orphan)) {
            affected.push(uid.clone());
        }
        // A dependent that no longer blocks may be what its owner waits for.
        if let Some(old) = old.filter(|_| owners_changed) {
            affected.extend(old.owners.iter().map(|owner| owner.uid.clone()));
        }
        self.nodes.insert(uid, node);
        affected
    }

    /// The object is gone. Returns the uids that need a look because of it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        self.unlink(&node);
        let mut affected: Vec<String> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let waiting = |owner: &&Owner| {
            self.nodes
                .get(&owner.uid)
                .is_some_and(Node::deletes_dependents)
        };
        affected.extend(
            node.owners
                .iter()
                .filter(waiting)
                .map(|owner| owner.uid.clone()),
        );
        affected
    }

    pub(super) fn forget_kind(&mut self, kind: &str) {
        let uids: Vec<String> = self
            .nodes
            .values()
            .filter(|node| node.kind == kind)
            .map(|node| node.uid.clone())
            .collect();
        for uid in uids {
            if let Some(node) = self.nodes.remove(&uid) {
                self.unlink(&node);
            }
        }
    }

    fn unlink(&mut self, node: &Node) {
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(&node.uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// The object, and each of its owners with what the graph knows of it.
    pub(super) fn view(&self, uid: &str) -> Option<View> {
        let node = self.nodes.get(uid)?.clone();
        let owners = node
            .owners
            .iter()
            .map(|owner| {
                let state = self.nodes.get(&owner.uid).map(|known| {
                    if known.deletes_dependents() && owner.blocks {
                        OwnerState::Waiting
                    } else {
                        OwnerState::Present
                    }
                });
                (owner.clone(), state)
            })
            .collect();
        Some((node, owners))
    }

    pub(super) fn plan(&self, uid: &str, owners: &[(Owner, OwnerState)]) -> Plan {
        let Some(node) = self.nodes.get(uid) else {
            return Plan::Keep;
        };
        let dependents = || {
            self.dependents
                .get(uid)
                .into_iter()
                .flatten()
                .filter_map(|uid| self.nodes.get(uid))
        };
        let names = |nodes: &mut dyn Iterator<Item = &Node>| {
            nodes.map(|node| node.uid.clone()).collect::<Vec<_>>()
        };
        if node.deleting {
            if node.orphan {
                return Plan::OrphanDependents(names(&mut dependents()));
            }
            if !node.foreground {
                return Plan::Keep;
            }
            let blocks = |dependent: &&Node| {
                dependent
                    .owners
                    .iter()
                    .any(|owner| owner.uid == *uid && owner.blocks)
            };
            let blocking = names(&mut dependents().filter(blocks));
            return if blocking.is_empty() {
                Plan::FinishForeground
            } else {
                Plan::DeleteDependents(blocking)
            };
        }
        if owners.is_empty() {
            return Plan::Keep;
        }
        let of = |wanted: OwnerState| {
            owners
                .iter()
                .filter(move |(_, state)| *state == wanted)
                .map(|(owner, _)| owner)
        };
        let stays =
            of(OwnerState::Present).next().is_some() || of(OwnerState::Unknown).next().is_some();
        let gone: BTreeSet<String> = of(OwnerState::Absent)
            .chain(of(OwnerState::Waiting))
            .map(|owner| owner.uid.clone())
            .collect();
        if stays {
            return if gone.is_empty() {
                Plan::Keep
            } else {
                Plan::DropOwners(gone)
            };
        }
        if of(OwnerState::Waiting).next().is_some() && dependents().next().is_some() {
            let circle = dependents().any(Node::deletes_dependents);
            return if circle {
                Plan::UnblockAndDelete(names(&mut dependents()))
            } else {
                Plan::Delete(PropagationPolicy::Foreground)
            };
        }
        Plan::Delete(if node.orphan {
            PropagationPolicy::Orphan
        } else if node.foreground {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    use super::*;

    struct Object<'a> {
        uid: &'a str,
        owners: &'a [(&'a str, bool)],
        finalizer: &'a str,
        deleting: bool,
    }

    fn node(object: &Object<'_>) -> Node {
        let references = object.owners.iter().map(|(uid, blocks)| OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: (*uid).into(),
            uid: (*uid).into(),
            block_owner_deletion: Some(*blocks),
            controller: None,
        });
        Node::new(
            "/Pod",
            &ObjectMeta {
                uid: Some(object.uid.into()),
                name: Some(object.uid.into()),
                owner_references: Some(references.collect()),
                finalizers: (!object.finalizer.is_empty()).then(|| vec![object.finalizer.into()]),
                deletion_timestamp: object
                    .deleting
                    .then(|| Time("2026-01-01T00:00:00Z".parse().expect("a time"))),
                ..Default::default()
            },
        )
    }

    fn plain<'a>(uid: &'a str, owners: &'a [(&'a str, bool)]) -> Object<'a> {
        Object {
            uid,
            owners,
            finalizer: "",
            deleting: false,
        }
    }

    /// The plan, with every owner that the graph does not know absent.
    fn plan(graph: &Graph, uid: &str) -> Plan {
        let (_, owners) = graph.view(uid).expect("known");
        let states: Vec<_> = owners
            .into_iter()
            .map(|(owner, state)| (owner, state.unwrap_or(OwnerState::Absent)))
            .collect();
        graph.plan(uid, &states)
    }

    #[test]
    fn dependents_follow_their_owner() {
        let mut graph = Graph::default();
        assert!(graph.put(node(&plain("set", &[]))).is_empty());
        assert!(
            graph.put(node(&plain("pod", &[("set", true)]))).is_empty(),
            "the owner is there"
        );
        assert_eq!(plan(&graph, "pod"), Plan::Keep);
        assert_eq!(graph.remove("set"), ["pod"]);
        assert_eq!(
            plan(&graph, "pod"),
            Plan::Delete(PropagationPolicy::Background)
        );
        assert_eq!(graph.put(node(&plain("late", &[("set", true)]))), ["late"]);
        graph.remove("pod");
        graph.remove("late");
        assert!(graph.nodes.is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn one_owner_left_is_enough() {
        let mut graph = Graph::default();
        graph.put(node(&plain("a", &[])));
        graph.put(node(&plain("pod", &[("a", true), ("b", true)])));
        assert_eq!(
            plan(&graph, "pod"),
            Plan::DropOwners(["b".to_owned()].into())
        );
        let (_, owners) = graph.view("pod").expect("known");
        let unknown: Vec<_> = owners
            .into_iter()
            .map(|(owner, _)| (owner, OwnerState::Unknown))
            .collect();
        assert_eq!(
            graph.plan("pod", &unknown),
            Plan::Keep,
            "nothing is deleted on a guess"
        );
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let mut graph = Graph::default();
        graph.put(node(&plain("pod", &[("set", true)])));
        graph.put(node(&plain("loose", &[("set", false)])));
        let deleting = Object {
            uid: "set",
            owners: &[],
            finalizer: FOREGROUND,
            deleting: true,
        };
        assert_eq!(graph.put(node(&deleting)), ["set"]);
        assert_eq!(
            plan(&graph, "set"),
            Plan::DeleteDependents(vec!["pod".into()])
        );
        assert_eq!(
            plan(&graph, "pod"),
            Plan::Delete(PropagationPolicy::Background)
        );
        assert_eq!(plan(&graph, "loose"), Plan::Keep);
        graph.put(node(&plain("child", &[("pod", true)])));
        assert_eq!(
            plan(&graph, "pod"),
            Plan::Delete(PropagationPolicy::Foreground)
        );
        graph.remove("child");
        assert_eq!(graph.remove("pod"), ["set"]);
        assert_eq!(plan(&graph, "set"), Plan::FinishForeground);
        assert_eq!(graph.remove("set"), ["loose"]);
        assert_eq!(
            plan(&graph, "loose"),
            Plan::Delete(PropagationPolicy::Background)
        );
    }

    #[test]
    fn orphaning_frees_the_dependents() {
        let mut graph = Graph::default();
        graph.put(node(&plain("pod", &[("set", true)])));
        let deleting = Object {
            uid: "set",
            owners: &[],
            finalizer: ORPHAN,
            deleting: true,
        };
        graph.put(node(&deleting));
        assert_eq!(
            plan(&graph, "set"),
            Plan::OrphanDependents(vec!["pod".into()])
        );
        graph.put(node(&plain("pod", &[])));
        assert_eq!(plan(&graph, "set"), Plan::OrphanDependents(vec![]));
        assert_eq!(plan(&graph, "pod"), Plan::Keep);
    }
}
