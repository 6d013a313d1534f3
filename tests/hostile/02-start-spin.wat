;; A start function that never returns: the harm is done before any message.
(func $spin (loop $on (br $on)))
(start $spin)
(func $handle (param $m i32) (result i32)
  (i32.const 0))
