;; A line for the log that clears the screen, rings, and pretends to be two lines, one of them the host's.
(import "cofferdam:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32)))
(data (i32.const 1200) "\1b[2Jgone\07\0d\0a2026-11-24T00:00:00Z  INFO forged line of the host\e2\80\ae")
(func $handle (param $m i32) (result i32)
  (call $log (i32.const 3) (i32.const 1200) (i32.const 57))
  (call $ok (i32.const 0)))
