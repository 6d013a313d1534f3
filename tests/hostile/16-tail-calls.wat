;; Two functions that call each other in tail position for ever: a loop without a loop and without a stack.
(func $ping (return_call $pong))
(func $pong (return_call $ping))
(func $handle (param $m i32) (result i32)
  (call $ping) (i32.const 0))
