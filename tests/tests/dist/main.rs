//! Many ranks.

mod alone;
mod bits;
mod cases;
mod checkpoint;
mod equality;
mod exchange;
mod layout;
mod mesh;
mod part;
mod processes;
mod ranks;
mod rules;
mod steps;
