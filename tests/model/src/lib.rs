//! Model checker of `protection::life`: every reachable state of orchestrators, two hosts, store and network.
//!
//! ```text
//!  person ─ asks ─► record (compare-and-swap) ─ orders ─► [late order] ─► source host   (guard, VM, disk) ─┐ ships
//!                      ▲   ▲                 └─ orders ─► [late order] ─► recovery host (guard, VM, disk) ◄┤ store (fence)
//!   slow orchestrator ─┘   └── reports ◄── [late report] ◄── both hosts                                    │
//!                                           source disk ◄───── failback: receives ──────── recovered disk ─┘
//! ```
//!
//! The rules are the production ones, called through [`rules::Rules`]; the [world] around them does everything that the
//! real one may do: orders and reports are lost, repeated, or arrive late behind newer ones; hosts restart at any moment;
//! an orchestrator dies between writing the record and sending; a second orchestrator acts on what it read long ago.
//!
//! Numbers only grow, so the states would be infinitely many; but rules only compare them. Each state is stored with
//! its numbers replaced by their ranks, and disk contents by which of them are equal ([`world::World::canonical`]).
//! The exploration is then finite *and* complete: no bound on how often the VM goes round.
//!
//! Why an explorer of our own and not the crate `stateright`: its properties are "always", "sometimes" and "eventually"
//! along one path. "Every state has a way out" is none of them: it says that from each state *some* path leads out, and
//! needs the graph of all steps, walked backwards from the good states. With the graph in hand the rest is
//! a breadth-first search of a hundred lines; the crate would add a web server and a work-stealing pool to the build for it.

pub mod explore;
pub mod rules;
pub mod steps;
pub mod world;
