;; Traps on every third message that its instance gets.
(global $seen (mut i32) (i32.const 0))
(func $handle (param $m i32) (result i32)
  (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
  (if (i32.eq (global.get $seen) (i32.const 3)) (then unreachable))
  (call $ok (i32.const 0)))
