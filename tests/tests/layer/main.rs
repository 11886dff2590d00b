//! The layer as a whole: slopes, the reference on every device, stages, independence of rows, memory policies, stale weights, balancing, mistakes, state.

mod balancing;
mod devices;
mod independence;
mod mistakes_in_configs;
mod mistakes_in_order;
mod mistakes_in_sizes;
mod mistakes_in_states;
mod policies;
mod reference;
mod rig;
mod slopes;
mod stages;
mod stale;
mod state;
mod step;
mod variants;
