//! Breadth-first exploration to the end, the graph of all steps, and the search for states without a way out.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash as _, Hasher};
use std::time::{Duration, Instant};

use crate::steps::{Action, Model, PROMISES, is_leaving, is_settled};
use crate::world::World;

/// What is promised of the graph as a whole.
pub const WAY_OUT: &str =
    "every state has a way out: to a protected, running VM, or to the end when that was asked for";

/// What an exploration found.
#[derive(Debug)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Longest of the shortest ways to a state.
    pub depth: usize,
    /// Wall clock.
    pub time: Duration,
    /// The first promise that does not hold, with the shortest way to where it breaks.
    pub broken: Option<Broken>,
}

/// A broken promise.
#[derive(Debug)]
pub struct Broken {
    /// Which.
    pub promise: &'static str,
    /// Step by step.
    pub story: String,
}

/// Why an exploration has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// States found when it was given up.
    pub states: usize,
}

/// A state by its hash. Of ten million states two have the same one with a chance of three in a million.
type Print = u64;

/// The hash is one already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type Known = HashMap<Print, u32, BuildHasherDefault<AsIs>>;

struct Node {
    parent: u32,
    settled: bool,
    leaving: bool,
    gone: bool,
}

/// What one thread found from its part of a level.
#[derive(Default)]
struct Found {
    /// Steps to known states.
    known: Vec<(u32, u32)>,
    /// Steps to states that were not known before this level; the flag: no fault.
    new: Vec<(u32, bool, Print, World)>,
    steps: usize,
}

/// Explores everything, with at most `limit` states.
///
/// # Errors
/// When there are more.
pub fn explore(model: &Model<'_>, limit: usize, threads: usize) -> Result<Outcome, TooLarge> {
    let began = Instant::now();
    let first = World::new();
    let mut graph = Graph::default();
    graph.add(print(&first), 0, &first);
    let mut level = vec![(0_u32, first)];
    let (mut steps, mut depth) = (0, 0);
    while !level.is_empty() {
        let part = level.len().div_ceil(threads.max(1));
        let found: Vec<Found> = std::thread::scope(|scope| {
            let graph = &graph;
            let running: Vec<_> = level
                .chunks(part)
                .map(|part| scope.spawn(move || expand(model, graph, part)))
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let mut next = Vec::new();
        for found in found {
            steps += found.steps;
            graph.edges.extend(found.known);
            for (parent, sound, print, world) in found.new {
                let (index, is_new) = graph.add(print, parent, &world);
                if sound {
                    graph.edges.push((parent, index));
                }
                if is_new {
                    if let Some(promise) = world.broken {
                        let broken = Some(Broken {
                            promise,
                            story: graph.story(model, index),
                        });
                        return Ok(graph.outcome(steps, depth, began, broken));
                    }
                    next.push((index, world));
                }
            }
        }
        if graph.nodes.len() > limit {
            return Err(TooLarge {
                states: graph.nodes.len(),
            });
        }
        depth += usize::from(!next.is_empty());
        level = next;
    }
    let broken = graph.dead_end().map(|index| Broken {
        promise: WAY_OUT,
        story: graph.story(model, index),
    });
    Ok(graph.outcome(steps, depth, began, broken))
}

fn expand(model: &Model<'_>, graph: &Graph, part: &[(u32, World)]) -> Found {
    let mut found = Found::default();
    let mut successors = Vec::new();
    for (parent, world) in part {
        successors.clear();
        model.successors(world, &mut successors);
        found.steps += successors.len();
        for (action, next) in &successors {
            let print = print(next);
            let sound = !action.is_fault();
            match graph.known.get(&print) {
                Some(index) if sound => found.known.push((*parent, *index)),
                Some(_) => {}
                None => found.new.push((*parent, sound, print, *next)),
            }
        }
    }
    found
}

fn print(world: &World) -> Print {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

#[derive(Default)]
struct Graph {
    known: Known,
    nodes: Vec<Node>,
    prints: Vec<Print>,
    /// Steps without a fault.
    edges: Vec<(u32, u32)>,
}

// === impl Graph ===

impl Graph {
    fn add(&mut self, print: Print, parent: u32, world: &World) -> (u32, bool) {
        if let Some(index) = self.known.get(&print) {
            return (*index, false);
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.known.insert(print, index);
        self.prints.push(print);
        self.nodes.push(Node {
            parent,
            settled: is_settled(world),
            leaving: is_leaving(world),
            gone: world.record.phase == protection::life::Phase::Gone,
        });
        (index, true)
    }

    fn outcome(
        &self,
        steps: usize,
        depth: usize,
        began: Instant,
        broken: Option<Broken>,
    ) -> Outcome {
        Outcome {
            states: self.nodes.len(),
            steps,
            depth,
            time: began.elapsed(),
            broken,
        }
    }

    /// The first state from which no sound step leads on to where it should.
    fn dead_end(&self) -> Option<u32> {
        let home = self.backwards(|node| node.settled);
        let end = self.backwards(|node| node.gone);
        self.nodes
            .iter()
            .zip(home)
            .zip(end)
            .position(|((node, home), end)| if node.leaving { !end } else { !home || !end })
            .and_then(|index| u32::try_from(index).ok())
    }

    /// Which states reach one that is `good`.
    fn backwards(&self, good: impl Fn(&Node) -> bool) -> Vec<bool> {
        // Predecessors of each state, one after another in one list.
        let mut starts = vec![0_u32; self.nodes.len() + 1];
        for (_, to) in &self.edges {
            if let Some(count) = starts.get_mut(at(*to) + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut places = starts.clone();
        let mut sources = vec![0_u32; self.edges.len()];
        for (from, to) in &self.edges {
            if let Some(place) = places.get_mut(at(*to)) {
                if let Some(slot) = sources.get_mut(at(*place)) {
                    *slot = *from;
                }
                *place += 1;
            }
        }
        let mut reaches: Vec<bool> = self.nodes.iter().map(good).collect();
        let mut open: Vec<usize> = (0..reaches.len())
            .filter(|index| reaches.get(*index) == Some(&true))
            .collect();
        while let Some(index) = open.pop() {
            let (Some(start), Some(end)) = (starts.get(index), starts.get(index + 1)) else {
                continue;
            };
            for from in sources.get(at(*start)..at(*end)).unwrap_or_default() {
                if let Some(reached) = reaches.get_mut(at(*from))
                    && !*reached
                {
                    *reached = true;
                    open.push(at(*from));
                }
            }
        }
        reaches
    }

    /// The shortest way to a state, found again by walking it: states themselves are not kept.
    fn story(&self, model: &Model<'_>, index: u32) -> String {
        let mut way = vec![index];
        let mut here = index;
        while here != 0 {
            let Some(node) = self.nodes.get(at(here)) else {
                break;
            };
            here = node.parent;
            way.push(here);
        }
        way.reverse();
        let mut world = World::new();
        let mut text = String::new();
        for target in way.iter().skip(1) {
            let wanted = self.prints.get(at(*target)).copied();
            let mut successors: Vec<(Action, World)> = Vec::new();
            model.successors(&world, &mut successors);
            let Some((action, next)) = successors
                .into_iter()
                .find(|(_, next)| Some(print(next)) == wanted)
            else {
                break;
            };
            let _ = writeln!(
                text,
                "  {action:?}\n      -> {:?}, source {:?}, {}; recovered {}",
                next.record.phase,
                next.record.standing,
                if next.source.running { "on" } else { "off" },
                if next.recovery.running { "on" } else { "off" },
            );
            world = next;
        }
        let _ = writeln!(text, "  {world:?}");
        text
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// How many promises are checked.
#[must_use]
pub fn promises() -> usize {
    PROMISES.len() + 1
}
