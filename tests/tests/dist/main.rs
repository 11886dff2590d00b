//! Many ranks.

mod alone;
mod cases;
mod checkpoint;
mod equality;
mod layout;
mod mesh;
mod part;
mod ranks;
mod rules;
mod steps;
