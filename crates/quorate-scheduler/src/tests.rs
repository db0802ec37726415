//! `cases`, `placement` and `resources` show plans as an operator would read them, written as `text`; `properties` holds
//! for all states that a history of a `world` leads to; `drains`, `balance` and `forecasts`
//! for whole courses of events.

mod autoscale;
mod balance;
mod cases;
mod casting;
mod drains;
mod forecasts;
mod placement;
mod properties;
mod resources;
mod stopped;
mod text;
mod traffic;
mod updates;
mod world;
