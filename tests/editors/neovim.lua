-- Drives nvim-dap as its user does: a breakpoint at the cursor, a configuration that is run, a step, disconnect.
-- Environment: VMD_NVIM_DAP (a checkout of nvim-dap), VMD_CONFIGURATION (what `vmdebug editor nvim` prints),
-- VMD_FILE, VMD_LINE, VMD_RESULT (a file), VMD_TITLE (the configuration), VMD_VM (the VM's name).
local seen = { reasons = {} }

local function finish(trouble)
  seen.trouble = trouble
  local file = assert(io.open(vim.env.VMD_RESULT, 'w'))
  file:write(vim.json.encode(seen))
  file:close()
  vim.cmd(trouble and 'cquit!' or 'qall!')
end

local function main()
  vim.opt.runtimepath:append(vim.env.VMD_NVIM_DAP)
  vim.cmd('runtime plugin/dap.lua')
  vim.cmd('source ' .. vim.env.VMD_CONFIGURATION)
  local dap = require('dap')
  vim.cmd('edit ' .. vim.env.VMD_FILE)
  vim.api.nvim_win_set_cursor(0, { tonumber(vim.env.VMD_LINE), 0 })
  dap.toggle_breakpoint()

  local stops = 0
  dap.listeners.after.stackTrace['test'] = function(session, failed, response)
    if failed then
      return finish('stackTrace: ' .. vim.inspect(failed))
    end
    stops = stops + 1
    local frame = response.stackFrames[1]
    table.insert(seen.reasons, { frame.name, frame.line, frame.source and frame.source.path })
    if stops == 1 then
      session:request('evaluate', { expression = 'filename', frameId = frame.id, context = 'watch' },
        function(refused, value)
          seen.filename = refused and vim.inspect(refused) or value.result
          dap.step_over()
        end)
    else
      dap.disconnect({}, function()
        vim.defer_fn(function() finish() end, 100)
      end)
    end
  end
  for _, configuration in ipairs(dap.configurations.c) do
    if configuration.name == vim.env.VMD_TITLE then
      configuration = vim.tbl_extend('force', configuration, { vm = vim.env.VMD_VM })
      dap.run(configuration)
      return
    end
  end
  finish('no configuration ' .. vim.env.VMD_TITLE)
end

vim.schedule(function()
  local done, trouble = pcall(main)
  if not done then
    finish(trouble)
  end
end)
