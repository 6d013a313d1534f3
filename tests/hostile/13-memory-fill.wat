;; Fills 32 MB again and again: one instruction is a long time without a look at the clock.
(func $handle (param $m i32) (result i32)
  (drop (memory.grow (i32.const 500)))
  (loop $on (memory.fill (i32.const 65536) (i32.const 7) (i32.const 32000000)) (br $on))
  (i32.const 0))
